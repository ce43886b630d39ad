"""Where tasks come from: the drawn and the written suite, and published data sets."""
