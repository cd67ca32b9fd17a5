"""The report of an evaluation as one page. Knows results, not how they were measured."""
