"""One TOML file for each preset."""
