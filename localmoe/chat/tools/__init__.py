"""How models write calls of tools: one file for each syntax, and one parser for all of them."""
