"""JSON bodies of the search server's requests and answers, with size limits."""

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from align_jax.texts import check_text

MAX_BODY = 12 << 20  # bytes of a request
MAX_TEXT = 1000  # characters
MAX_TERMS = 16
MAX_ITEMS = 64  # texts, pictures or labels in one list of a request
MAX_LIMIT = 200  # pictures of one answer


def _checked(text: str) -> str:
    check_text(text, "the text")
    return text


Text = Annotated[
    str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_checked)
]
# A picture file in base64, which is a third longer than the file.
Upload = Annotated[str, Field(min_length=1, max_length=MAX_BODY)]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TermBody(_Body):
    """A text, a picture file or an indexed picture's id, and a weight of any sign."""

    text: Text | None = None
    image: Upload | None = None
    id: Text | None = None
    weight: Weight | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(part is not None for part in (self.text, self.image, self.id)) != 1:
            raise ValueError("wanted one of text, image and id")
        return self


class SearchBody(_Body):
    """A query: the weighted sum of its terms, and the number of pictures to return."""

    terms: Annotated[list[TermBody], Field(min_length=1, max_length=MAX_TERMS)]
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 24
    exact: bool = False


class HitBody(_Body):
    """A picture of the index, its cosine similarity with the query and its text."""

    id: str
    score: float
    text: str


class SearchAnswer(_Body):
    """The nearest pictures, best first."""

    hits: list[HitBody]


class EmbedBody(_Body):
    """Texts, and picture files in base64, to embed."""

    texts: Annotated[list[Text], Field(max_length=MAX_ITEMS)] = []
    images: Annotated[list[Upload], Field(max_length=MAX_ITEMS)] = []


class EmbedAnswer(_Body):
    """Embeddings of unit length, in the order of the request."""

    texts: list[list[float]]
    images: list[list[float]]


class ClassifyBody(_Body):
    """A picture file in base64, and optionally labels instead of the server's."""

    image: Upload
    labels: Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS)] | None = (
        None
    )


class Scored(_Body):
    """A label with its probability, or a caption with its cosine to the picture."""

    text: str
    score: float


class ClassifyAnswer(_Body):
    """The most probable labels and the nearest captions, best first.

    `absent` says why there are no labels or captions, and how to provide them.
    """

    labels: list[Scored]
    captions: list[Scored]
    absent: list[str] = []


class Problem(_Body):
    """The reason why a request was refused."""

    detail: str
