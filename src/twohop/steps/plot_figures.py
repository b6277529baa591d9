"""Figures as SVG and PNG, and `summary.json` with every headline number, its interval and each figure's caption."""

from twohop.config import PlotFigures
from twohop.figures import CAPTIONS, FIGURES, headline, load_study, save, styled, summarise
from twohop.steps._step import Job, Step, Summary
from twohop.store import write_json

STEP = Step(
    name="plot_figures",
    params=("plot_figures", "models", "patch_activations.back_pairs"),
    inputs=(
        "entities",
        "cards",
        "questions",
        "answers",
        "recognition",
        "scores",
        "question_scores",
        "validation",
        "outcomes",
        "curves",
        "predictions",
        "resolution",
        "readings",
        "depths",
        "recovered",
    ),
    outputs=(
        "summary",
        "headline",
        "benchmark_svg",
        "benchmark_png",
        "attribution_svg",
        "attribution_png",
        "validation_svg",
        "validation_png",
        "patching_svg",
        "patching_png",
        "layer_sweep_svg",
        "layer_sweep_png",
        "probes_svg",
        "probes_png",
        "resolution_svg",
        "resolution_png",
        "recovery_svg",
        "recovery_png",
    ),
    per_model=False,
)


def run(job: Job) -> Summary:
    """Draw every figure; a figure without data says so.

    Raises:
        ArtifactError: a table is unreadable or of a model that params.yaml lacks.
    """
    settings = job.section(PlotFigures)
    study = load_study(job.inputs, job.params["models"])
    pairs = [(later, earlier) for later, earlier in job.params["patch_activations.back_pairs"]]
    summary = summarise(study, pairs, settings.n_boot, settings.seed)
    for name, draw in FIGURES.items():
        figure = styled(lambda draw=draw: draw(study, summary))
        save(figure, job.output(f"{name}_svg"), job.output(f"{name}_png"), settings.dpi)
    captions = {name: caption(summary) for name, caption in CAPTIONS.items()}
    write_json(job.output("summary"), {**summary, "captions": captions})
    write_json(job.output("headline"), headline(summary))
    return {"figures": len(FIGURES), "models": len(study.models), "questions": summary["n_questions"]}
