"""How operators and sensors come to their arguments: declared once, in the constructor's signature.

What a constructor declares by a type of :mod:`airflow_provider_modelsync.core.arguments` is a template field of the
same name, and is read once the task runs, before its first request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from airflow.sdk import ObjectStoragePath

from airflow_provider_modelsync.compat import conf, template_fields
from airflow_provider_modelsync.core.arguments import Reads, Signature, is_nothing, looks_structured, shown, structure
from airflow_provider_modelsync.core.errors import InvalidInput

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

DEFERRABLE = conf.getboolean("operators", "default_deferrable", fallback=False)

Location = str | os.PathLike[str] | ObjectStoragePath


def _place(value: Any) -> Any:
    """Read a path or a URL; also the dictionary of a version that was pulled to one."""
    if looks_structured(value):
        value = structure(value)
    if isinstance(value, Mapping) and isinstance(path := value.get("path"), str):
        return path
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, (str, ObjectStoragePath)) or isinstance(getattr(value, "__fspath__", lambda: 0)(), str):
        return value
    raise ValueError(f"a value of type {type(value).__name__} is no path and no URL")


Place = Annotated[Any, Reads(_place)]


class TakesArguments:
    """Mixed in front of Airflow's base classes: declared arguments are template fields, and are read in every form."""

    template_fields: Any = ()
    _signature: ClassVar[Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        constructors = [vars(base)["__init__"] for base in reversed(cls.__mro__) if _is_ours(base)]
        cls._signature = Signature(*constructors)
        if "template_fields" not in vars(cls):
            cls.template_fields = template_fields(cls, (*cls._signature.names, *cls.template_fields))

    def read_arguments(self) -> None:
        """Put what each argument means in the place of what was given for it.

        :raises InvalidInput: naming the first argument that is not understood.
        """
        given = {name: getattr(self, name) for name in self._signature.names}
        try:
            for name, value in given.items():
                setattr(self, name, self._signature.read(name, value))
        except InvalidInput as error:
            named = ("model", "deployment"), ("registry_conn_id", "target_conn_id")
            model, connection = (
                next((shown(given[name]) for name in names if not is_nothing(given.get(name))), None) for names in named
            )
            raise error.about(model=model, connection=connection) from None

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        render = super().render_template  # type: ignore[misc]  # Airflow's
        if isinstance(content, os.PathLike) and not isinstance(content, ObjectStoragePath):
            # Airflow passes paths over, and a directory would be named by the template's text.
            path = os.fspath(content)
            return Path(str(render(path, context, jinja_env, seen_oids))) if isinstance(path, str) else content
        return render(content, context, jinja_env, seen_oids)


def _is_ours(base: type) -> bool:
    return issubclass(base, TakesArguments) and "__init__" in vars(base)
