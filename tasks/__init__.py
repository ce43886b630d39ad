"""Where tasks come from: the drawn and the written suite, published data sets and one's own."""
