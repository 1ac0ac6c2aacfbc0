"""The ahead-of-time gate: compiles every shipped tile without a GPU, and inspects the result."""
