"""IFAdapter (arXiv 2409.08240): a detailed phrase for every box."""
