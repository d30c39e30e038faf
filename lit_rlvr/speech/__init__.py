"""How models talk: the marks of their thoughts, and their tool calls."""
