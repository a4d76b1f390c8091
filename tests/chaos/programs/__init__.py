"""Programs that a campaign runs as processes of their own."""
