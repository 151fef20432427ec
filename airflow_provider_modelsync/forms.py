"""Connection forms for versions of Airflow that ask hooks for them, made of what :mod:`.provider_info` declares.

Ranges of numbers and the sections of a form are lost: those versions know neither.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from airflow_provider_modelsync.compat import READS_FORMS
from airflow_provider_modelsync.provider_info import get_provider_info


def offer_form(hook: type[Any]) -> None:
    """Give a hook's class the two methods that its form is read from, where this Airflow asks for them.

    It asks a class only for what the class itself defines.

    :param hook: one of the declared connection types, or of somebody else's, which is left as it is.
    """
    if READS_FORMS:
        return
    forms = {form["connection-type"]: form for form in get_provider_info()["connection-types"]}
    if form := forms.get(vars(hook).get("conn_type")):
        hook.get_connection_form_widgets = staticmethod(partial(_widgets, form["conn-fields"]))
        hook.get_ui_field_behaviour = staticmethod(partial(_behaviour, form["ui-field-behaviour"]))


def _behaviour(declared: dict[str, Any]) -> dict[str, Any]:
    return {"relabeling": {}, "placeholders": {}, **{key.replace("-", "_"): value for key, value in declared.items()}}


def _widgets(declared: dict[str, Any]) -> dict[str, Any]:
    # Imported only now: Airflow puts fields of its own in the place of these while it asks, also where there is no
    # Flask-AppBuilder that they would be drawn by.
    from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget, BS3TextFieldWidget
    from wtforms import BooleanField, IntegerField, PasswordField, StringField
    from wtforms.validators import Optional, any_of

    def widget(field: dict[str, Any]) -> Any:
        schema = field["schema"]
        checks = [any_of(schema["enum"]) if "enum" in schema else Optional()]
        about = {"description": field["description"], "default": schema.get("default"), "validators": checks}
        if "boolean" in schema["type"]:
            return BooleanField(field["label"], **about)
        if "integer" in schema["type"]:
            return IntegerField(field["label"], **about, widget=BS3TextFieldWidget())
        if schema.get("format") == "password":
            return PasswordField(field["label"], **about, widget=BS3PasswordFieldWidget())
        return StringField(field["label"], **about, widget=BS3TextFieldWidget())

    return {name: widget(field) for name, field in declared.items()}
