"""Fields that conversations have in both of OpenAI's APIs for them, and that change nothing here."""

from typing import Annotated, Any, Literal

from .wire import Label, Labels, Only, Wire


class InertFields(Wire):
    user: Annotated[str | None, Label()] = None
    metadata: Annotated[Labels | None, Label()] = None
    safety_identifier: Annotated[str | None, Label()] = None
    prompt_cache_key: Annotated[str | None, Label()] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, Label()] = None
    prompt_cache_retention: Annotated[Literal["in_memory", "in-memory", "24h"] | None, Label()] = None

    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, Only(True, False)] = None
    moderation: Annotated[Any, Only()] = None
    service_tier: Annotated[Any, Only("auto", "default")] = None
