"""How models talk: the marks of their thoughts, their tool calls, and questions that they invent."""
