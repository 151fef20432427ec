"""The provider that brings the tests' connection type and file system to Airflow. Data only, as the real one."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata."""
    return {
        "package-name": "modelsync-test-provider",
        "name": "Model Sync's tests",
        "description": "What the tests of airflow-provider-modelsync need in Airflow.",
        "connection-types": [
            {
                "connection-type": "scripted",
                "hook-class-name": "tests.support.scripted.ScriptedHook",
                "hook-name": "Scripted Store",
            }
        ],
        "filesystems": ["tests.support.memory"],
    }
