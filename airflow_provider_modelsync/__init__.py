"""Move machine-learning models between Apache Airflow and model registries."""

__version__ = "0.1.0"
