"""Data: tasks, official files and tables of one's own, users, metrics, answers without a model."""
