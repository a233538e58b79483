"""An answer as HTML. All that comes from a user or a model is escaped here, and only here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bert_snli.serving.answering import CUT, SPECIAL, UNKNOWN, Answer, SeenToken

MEANINGS = {
    "entailment": "If the premise is true, so is the hypothesis.",
    "contradiction": "If the premise is true, the hypothesis is not.",
    "neutral": "The premise leaves it open.",
}
# For each way to weigh tokens: its name, and what may be read into it.
SHADINGS = {
    "gradient": (
        "What the answer hangs on",
        "Gradient × input: how strongly the lead of {first} over {second} reacts to each token’s embedding, as a share "
        "of all tokens. It is about small changes of this very pair; it gives no reasons.",
    ),
    "attention": (
        "Where <cls> looks",
        "Attention of <cls>, which every classifier reads and some read alone, in the last layer: the mean over its "
        "heads, as a share of all tokens. What is looked at need not decide.",
    ),
}


def render(answer: Answer, shading: str) -> str:
    """The verdict, the bars, the words."""
    first, second, *_ = answer.scores
    about = SHADINGS[shading][1].format(first=first, second=second)
    sides = "".join(_side(name, tokens, _strongest(answer)) for name, tokens in answer.sides.items())
    return (
        '<div class="bs-answer" aria-live="polite">'
        f'<p class="bs-verdict bs-{_css_name(first)}">{escape(first)}</p>'
        f'<p class="bs-meaning">{escape(MEANINGS[first.lower()])}</p>'
        f"{_bars(answer.scores)}"
        f"{_cut_notice(answer)}"
        f'<div class="bs-sides">{sides}</div>'
        f"{_legend(answer)}"
        f'<p class="bs-note">{escape(about)}</p>'
        f'<p class="bs-note bs-time">The model took {answer.milliseconds:.1f} ms.</p>'
        "</div>"
    )


def render_table(pairs: Sequence[tuple[str, str]], answers: Sequence[dict[str, float]]) -> str:
    """A row for each pair: the pair, one sentence below the other, and its most probable label."""
    rows = []
    for (premise, hypothesis), scores in zip(pairs, answers, strict=True):
        label, probability = next(iter(scores.items()))
        rows.append(
            f"<tr><td>{escape(premise)}<br>→ {escape(hypothesis)}</td>"
            f'<td><b class="bs-verdict bs-{_css_name(label)}">{escape(label)}</b><br>{probability:.1%}</td></tr>'
        )
    head = '<thead><tr><th scope="col">Premise → hypothesis</th><th scope="col">Answer</th></tr></thead>'
    return f'<div class="bs-answer"><table class="bs-table">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _css_name(label: str) -> str:
    return next(name for name in MEANINGS if name == label.lower())


def _bars(scores: dict[str, float]) -> str:
    """A bar for each label, always in the same order."""
    by_name = {_css_name(label): (label, score) for label, score in scores.items()}
    rows = "".join(
        f'<tr class="bs-{name}"><th scope="row">{escape(by_name[name][0])}</th>'
        f'<td class="bs-track"><div style="width:{100 * by_name[name][1]:.2f}%"></div></td>'
        f"<td>{by_name[name][1]:.1%}</td></tr>"
        for name in MEANINGS
    )
    return f'<table class="bs-bars" aria-label="Probabilities">{rows}</table>'


def _strongest(answer: Answer) -> float:
    """The largest share among words; `<cls>` and `<sep>` may have more, and would leave the words pale."""
    words = [token.weight for side in answer.sides.values() for token in side if token.kind != SPECIAL]
    return max(words, default=0.0) or 1.0


def _side(name: str, tokens: list[SeenToken], strongest: float) -> str:
    shown = "".join(f"{escape(token.before)}{_token(token, strongest)}" for token in tokens)
    return f'<h3>{name.capitalize()}</h3><p class="bs-words" data-side="{name}">{shown}</p>'


def _token(token: SeenToken, strongest: float) -> str:
    """The user's own word; below it the token, where that is another."""
    what = f"token {token.token}"
    what += ", not read" if token.kind == CUT else f", {token.weight:.1%}"
    small = (
        "" if token.text.lower() == token.token.lower() or not token.text else f"<small>{escape(token.token)}</small>"
    )
    return (
        f'<span class="bs-token bs-{token.kind}" style="--heat:{min(token.weight / strongest, 1):.3f}" '
        f'title="{escape(what)}">{escape(token.text or token.token)}{small}</span>'
    )


def _cut_notice(answer: Answer) -> str:
    cut = answer.length - answer.max_length
    if cut <= 0:
        return ""
    return (
        f'<p class="bs-cut-notice" role="note">This pair has {answer.length} tokens; the model reads '
        f"{answer.max_length}. The {cut} that are struck through were cut off.</p>"
    )


def _legend(answer: Answer) -> str:
    """What the marks mean, of those that there are."""
    kinds = {token.kind for side in answer.sides.values() for token in side}
    entries = ['<span class="bs-scale" aria-hidden="true"></span> less to more']
    if UNKNOWN in kinds:
        entries.append(
            '<span class="bs-token bs-unknown">word</span> not in the vocabulary: the model reads &lt;unk&gt; and '
            "cannot know which word stood there"
        )
    if CUT in kinds:
        entries.append('<span class="bs-token bs-cut">word</span> cut off, not read')
    entries.append('<span class="bs-token bs-special">&lt;sep&gt;</span> added for the model')
    return f'<ul class="bs-legend">{"".join(f"<li>{entry}</li>" for entry in entries)}</ul>'
