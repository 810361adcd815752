"""How good a model is, in numbers that a black picture cannot earn."""
