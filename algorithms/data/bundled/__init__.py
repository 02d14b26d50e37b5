"""Bundled data: rolled out on first use from policies that the package contains."""
