"""As much of Wallaroo's GraphQL as its SDK asks for: a schema to introspect, and the answers to the queries it makes.

The SDK checks its queries against the schema, so fields that it names are there; answers may hold more than was asked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.standins.wallaroo import Deployment, Model, ModelVersion, Pipeline, PipelineVersion, WallarooStandIn

Json = dict[str, Any]

# Fields by type: name(argument):type; [type] is a list, no type any scalar. The argument `id` is a bigint.
SCHEMA = {
    "query_root": """
        model(where):[model] model_by_pk(id):model model_config_by_pk(id):model_config workspace_by_pk(id):workspace
        pipeline_by_pk(id):pipeline pipeline_version_by_pk(id):pipeline_version deployment_by_pk(id):deployment""",
    "model": """
        id created_on_version model_id model_version models_pk_id sha status error_summary file_name image_path
        updated_at visibility model_tags:[tag_link] conversion(path) model:models_pk""",
    "models_pk": "id name models:[model] workspace:workspace",
    "model_config": """
        id filter_threshold model:model runtime tensor_fields dynamic_batching_config continuous_batching_config openai
        input_schema output_schema""",
    "workspace": """
        archived created_at created_by id name users:[workspace_user] models(order_by):[models_pk]
        pipelines:[pipeline]""",
    "workspace_user": "user_id",
    "tag_link": "tag:tag",
    "tag": "id tag",
    "pipeline": """
        id pipeline_id created_at updated_at visibility owner_id pipeline_versions(order_by):[pipeline_version]
        pipeline_tags:[tag_link] workspace:workspace deployment:deployment""",
    "pipeline_version": """
        id created_on_version created_at updated_at version definition pipeline:pipeline
        deployment_pipeline_versions:[deployment_pipeline_version] deployment_model_configs:[deployment_model_config]
        pipeline_publishes:[pipeline_publish]""",
    "pipeline_publish": """
        created_on_version chart_url created_at created_by engine_url id pipeline_url status updated_at
        pipeline_version_id engine_config user_images""",
    "deployment": """
        id deploy_id deployed engine_config limit_status pipeline:pipeline
        deployment_model_configs:[deployment_model_config]
        deployment_pipeline_versions(order_by):[deployment_pipeline_version]""",
    "deployment_model_config": "model_config:model_config",
    "deployment_pipeline_version": "created_at updated_at deployment:deployment pipeline_version:pipeline_version",
}
SCALARS = ("any", "bigint", "String", "Int", "Boolean")
_FIELD = re.compile(r"(?P<name>\w+)(\((?P<argument>\w+)\))?(:(?P<list>\[)?(?P<type>\w+)\]?)?")


def _type(name: str, *, is_list: bool = False) -> Json:
    named = {"kind": "SCALAR" if name in SCALARS else "OBJECT", "name": name, "ofType": None}
    return {"kind": "LIST", "name": None, "ofType": named} if is_list else named


def _field(text: str) -> Json:
    found = _FIELD.fullmatch(text)
    assert found, text
    argument = found["argument"]
    taken = {"name": argument, "type": _type("bigint" if argument == "id" else "any"), "defaultValue": None}
    kind = _type(found["type"] or "any", is_list=bool(found["list"]))
    return {"name": found["name"], "args": [taken] if argument else [], "type": kind, "isDeprecated": False}


def _introspection() -> Json:
    objects = [
        {"kind": "OBJECT", "name": name, "fields": [_field(text) for text in fields.split()], "interfaces": []}
        for name, fields in SCHEMA.items()
    ]
    scalars = [{"kind": "SCALAR", "name": name} for name in SCALARS]
    roots = {"queryType": {"name": "query_root"}, "mutationType": None, "subscriptionType": None}
    return {"__schema": {**roots, "types": [*scalars, *objects], "directives": []}}


def execute(server: WallarooStandIn, query: str, variables: Json) -> Json:
    """The answer to one query: the first field of its selection, found by the number that it names."""
    if "__schema" in query:
        return {"data": _introspection()}
    found = re.search(r"\{\s*(\w+)\s*\(\s*(?:id\s*:\s*(\$?\w+))?", query)
    resolvers = {
        "model_by_pk": _model_by_pk,
        "model_config_by_pk": _model_config,
        "workspace_by_pk": _workspace,
        "pipeline_by_pk": _pipeline_by_pk,
        "pipeline_version_by_pk": _pipeline_version,
        "deployment_by_pk": _deployment,
    }
    if found and found[1] in resolvers and found[2]:
        number = variables[found[2][1:]] if found[2].startswith("$") else found[2]
        return {"data": {found[1]: resolvers[found[1]](server, int(number))}}
    if found and found[1] == "model":
        wanted = (variables.get("model_id"), variables.get("model_version"))
        rows = [one for one in server.versions.values() if (one.model.name, one.uuid) == wanted]
        return {"data": {"model": [_version(server, one) for one in rows]}}
    return {"errors": [{"message": "the stand-in knows no answer to this query", "extensions": {"query": query}}]}


def _model_by_pk(server: WallarooStandIn, number: int) -> Json | None:
    version = server.versions.get(number)
    return version and _version(server, version)


def _version(server: WallarooStandIn, version: ModelVersion) -> Json:
    status = version.seen_status()
    return {
        "id": version.id,
        "created_on_version": "2025.2.1",
        "model_id": version.model.name,
        "model_version": version.uuid,
        "models_pk_id": version.model.id,
        "sha": version.sha,
        "status": status,
        "error_summary": version.error_summary if status == "error" else None,
        "file_name": version.file_name,
        "image_path": version.image_path,
        "updated_at": version.created_at,
        "visibility": version.visibility,
        "model_tags": [],
        "arch": version.conversion.get("arch"),
        "accel": version.conversion.get("accel"),
        "model": {"workspace": _named_workspace(server, version.model)},
    }


def _named_workspace(server: WallarooStandIn, owner: Model | Pipeline) -> Json:
    return {"id": owner.workspace_id, "name": server.workspaces[owner.workspace_id].name}


def _model_config(server: WallarooStandIn, number: int) -> Json | None:
    for version in server.versions.values():
        for config in version.configs:
            if config["id"] == number:
                return {**config, "model": {"id": version.id}}
    return None


def _workspace(server: WallarooStandIn, number: int) -> Json | None:
    workspace = server.workspaces.get(number)
    if workspace is None:
        return None
    models = sorted(server.models.values(), key=lambda model: model.updated_at, reverse=True)
    return {
        "archived": False,
        "created_at": workspace.created_at,
        "created_by": workspace.created_by,
        "id": workspace.id,
        "name": workspace.name,
        "users": [{"user_id": user} for user in workspace.users],
        "models": [
            {"id": model.id, "models": [{"id": version.id} for version in model.versions]}
            for model in models
            if model.workspace_id == number
        ],
        "pipelines": [{"id": one.id} for one in server.pipelines.values() if one.workspace_id == number],
    }


def _pipeline_by_pk(server: WallarooStandIn, number: int) -> Json | None:
    pipeline = server.pipelines.get(number)
    if pipeline is None:
        return None
    return {
        "id": pipeline.id,
        "pipeline_id": pipeline.name,
        "created_at": pipeline.created_at,
        "updated_at": pipeline.updated_at,
        "visibility": "private",
        "owner_id": '""',
        "pipeline_versions": [{"id": one.id, "pipeline_publishes": []} for one in reversed(pipeline.versions)],
        "pipeline_tags": [],
        "workspace": _named_workspace(server, pipeline),
        "deployment": pipeline.deployment and _deployed(pipeline.deployment),
    }


def _deployed(deployment: Deployment) -> Json:
    return {
        "id": deployment.id,
        "deploy_id": deployment.deploy_id,
        "deployed": deployment.deployed,
        "engine_config": deployment.engine_config,
    }


def _configs(server: WallarooStandIn, version: PipelineVersion) -> list[Json]:
    """The configs of the models that a pipeline's version is made of."""
    wanted = {step["version"] for step in version.steps}
    found = [one for one in server.versions.values() if one.uuid in wanted]
    return [
        {
            "model_config": {
                "id": one.configs[-1]["id"],
                "model": {"id": one.id, "model": {"id": one.model.id, "name": one.model.name}},
            }
        }
        for one in found
    ]


def _deployment(server: WallarooStandIn, number: int) -> Json | None:
    for pipeline in server.pipelines.values():
        deployment = pipeline.deployment
        if deployment is not None and deployment.id == number:
            return {
                **_deployed(deployment),
                "deployment_model_configs": _configs(server, deployment.version),
                "deployment_pipeline_versions": [{"pipeline_version": {"id": deployment.version.id}}],
                "pipeline": {"pipeline_id": pipeline.name},
            }
    return None


def _pipeline_version(server: WallarooStandIn, number: int) -> Json | None:
    for pipeline in server.pipelines.values():
        for version in pipeline.versions:
            if version.id == number:
                deployment = pipeline.deployment
                is_deployed = deployment is not None and deployment.version is version
                return {
                    "id": version.id,
                    "created_on_version": "2025.2.1",
                    "created_at": version.created_at,
                    "updated_at": version.created_at,
                    "version": version.uuid,
                    "definition": version.definition,
                    "pipeline": {"id": pipeline.id},
                    "deployment_pipeline_versions": [
                        {
                            "created_at": version.created_at,
                            "updated_at": version.created_at,
                            "deployment": {"id": deployment.id},
                        }
                    ]
                    if is_deployed and deployment
                    else [],
                    "deployment_model_configs": _configs(server, version) if is_deployed else [],
                    "pipeline_publishes": [],
                }
    return None
