"""What is moved in training: every weight, or adapters beside them; and what training starts from."""
