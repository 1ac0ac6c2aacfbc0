"""Distribution matching: a student whose samples, in distribution, are the teacher's (DMD2, f-distill, SiD, VSD, LADD,
TwinFlow)."""
