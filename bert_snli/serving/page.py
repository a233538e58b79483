"""The page's HTML from Jinja templates, which escape all text of users and models."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader

from bert_snli.serving.explanation import SPECIAL, ExplainedPredictor, Explanation

TITLE = "Does it follow?"
MEANINGS = {
    "entailment": "If the premise is true, so is the hypothesis.",
    "contradiction": "If the premise is true, the hypothesis is false.",
    "neutral": "The premise leaves it open.",
}
EXAMPLES = [
    ["A woman in a red coat is walking her dog along the beach.", "A woman is outside with an animal."],
    ["Three children are playing football in the park.", "The children are asleep in their beds."],
    ["A man is playing the guitar on a street corner.", "The man wants to earn money for his rent."],
    ["Nobody is sitting on the bench by the lake.", "Two people are sitting on a bench."],
    ["A barista in a zoot suit pours a flat white.", "Someone is making coffee."],
]
TEMPLATES = Environment(
    loader=PackageLoader("bert_snli.serving"),
    autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_header(predictor: ExplainedPredictor) -> str:
    """Return the title and a description of the model."""
    return TEMPLATES.get_template("header.html.jinja").render(
        title=TITLE, name=predictor.name, config=predictor.model.config, max_length=predictor.max_length
    )


def render_explanation(explanation: Explanation) -> str:
    """Return the predicted label, a bar for each probability, and the tokens coloured by weight."""
    tokens = [token for sentence in explanation.tokens.values() for token in sentence]
    # Special tokens often have the largest weights; on their scale all words would look pale.
    largest_weight = max((token.weight for token in tokens if token.kind != SPECIAL), default=0.0) or 1.0
    return TEMPLATES.get_template("explanation.html.jinja").render(
        explanation=explanation,
        kinds={token.kind for token in tokens},
        largest_weight=largest_weight,
        meanings=MEANINGS,
    )


def render_predictions(pairs: Sequence[tuple[str, str]], predictions: Sequence[dict[str, float]]) -> str:
    """Return a table with each pair, its label and the label's probability."""
    return TEMPLATES.get_template("predictions.html.jinja").render(rows=zip(pairs, predictions, strict=True))
