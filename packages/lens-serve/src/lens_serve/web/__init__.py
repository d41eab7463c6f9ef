"""The page that `lens serve` shows at `/`."""
