"""Distribution matching: the student's samples match the teacher's in distribution, not one by one.

DMD2, f-distill, SiD, VSD, LADD and TwinFlow; drifting matches the distribution of the data.
"""
