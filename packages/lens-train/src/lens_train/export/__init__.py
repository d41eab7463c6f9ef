"""What a finished model is handed over with."""
