"""Any Hugging Face causal language model as a frozen text encoder."""
