"""The methods that come with bench-xai: one file per paper or family, each behind its own entry point."""
