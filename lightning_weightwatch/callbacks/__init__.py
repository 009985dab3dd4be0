"""When to look and whom to tell. The only part that imports lightning; no arithmetic on tensors."""
