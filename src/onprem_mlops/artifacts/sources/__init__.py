"""One module a kind of source: how an artifact's files are made or fetched."""
