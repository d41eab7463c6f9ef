"""What training will take, before it begins."""
