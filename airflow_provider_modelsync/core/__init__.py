"""The engine: registries, transfer and archives. Nothing in here imports Airflow."""
