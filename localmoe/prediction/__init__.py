"""Which experts the next layers will want, told from what is known now. Knows no engine."""
