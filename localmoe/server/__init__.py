"""A model behind HTTP, for programs that speak to OpenAI's or Anthropic's servers, and a page."""
