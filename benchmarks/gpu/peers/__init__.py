"""Third-party kernels, each behind a small adapter that says why it cannot be used here."""
