"""`python -m docs` writes a site to read along on: the paper on the left, its code on the right."""
