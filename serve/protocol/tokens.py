"""POST /tokenize and /detokenize, as vLLM has them."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, model_validator

from .described import THERE, also, exactly_one
from .messages import Messages
from .wire import Only, TokenList, Wire


class TokenizeRequest(Wire):
    """A text, or a conversation as the model is given it, the tokens of its pictures too."""

    model_config = also(**exactly_one(prompt=THERE, messages=THERE))
    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: Annotated[Any, Only(True)] = None
    add_generation_prompt: Annotated[Any, Only(True)] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either 'prompt' or 'messages'")
        return self


class TokenizeAnswer(BaseModel):
    """max_model_len: tokens that prompt and answer may have together."""

    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeRequest(Wire):
    model: str | None = None
    tokens: TokenList


class DetokenizeAnswer(BaseModel):
    """prompt: the tokens' text, control tokens left out."""

    prompt: str
