"""The paper's measurements of a model: programs, metrics, verdicts and the report. Knows no stage and no command."""
