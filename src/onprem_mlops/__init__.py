"""Build and run an MLOps platform on your own hardware."""
