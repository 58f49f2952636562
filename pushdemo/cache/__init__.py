"""memorize: a value is computed once for everyone. Knows cachetools alone."""
