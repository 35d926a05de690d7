"""The diagnostics: everything that looks at scores and masks."""
