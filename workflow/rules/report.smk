# Figures, and the page a person reads.
#
# inputs:  the tables of every model, and every job's lineage
# outputs: results/plot_figures/{summary.json,<figure>.svg,<figure>.png}
#          results/render_report/report.html
# steps:   plot_figures -> render_report
FIGURE_NAMES = (
    "benchmark",
    "attribution",
    "validation",
    "patching",
    "layer_sweep",
    "probes",
    "resolution",
    "recovery",
)
FIGURE_FILES = {
    f"{name}_{kind}": f"results/plot_figures/{name}.{kind}"
    for name in FIGURE_NAMES
    for kind in ("svg", "png")
}
TABLES = {
    "entities": "results/curate_entities/entities.parquet",
    "cards": per_model("results/prepare_model/{model}/card.json", MODELS),
    "questions": per_model("results/build_questions/{model}/questions.parquet", MODELS),
    "answers": per_model("results/run_benchmark/{model}/answers.parquet", MODELS),
    "recognition": per_model(
        "results/run_benchmark/{model}/recognition.parquet", MODELS
    ),
    "scores": per_model(
        "results/score_attribution/{model}/scores.parquet", BACKBONES, VLMS
    ),
    "question_scores": per_model(
        "results/score_attribution/{model}/question_scores.parquet", BACKBONES, VLMS
    ),
    "validation": per_model(
        "results/score_attribution/{model}/validation.parquet", BACKBONES, VLMS
    ),
    "outcomes": per_model("results/patch_activations/{model}/outcomes.parquet", VLMS),
    "curves": per_model("results/train_probes/{model}/curves.parquet", VLMS, CONTROLS),
    "predictions": per_model(
        "results/train_probes/{model}/predictions.parquet", VLMS, CONTROLS
    ),
    "resolution": per_model(
        "results/measure_resolution/{model}/resolution.parquet", MODELS
    ),
    "readings": per_model(
        "results/measure_resolution/{model}/readings.parquet", MODELS
    ),
    "depths": per_model("results/measure_resolution/{model}/depths.parquet", MODELS),
    "recovered": per_model("results/recover_recall/{model}/recovered.parquet", VLMS),
}
METRICS = [
    *per_model("results/run_benchmark/{model}/metrics.json", MODELS),
    *per_model("results/score_attribution/{model}/metrics.json", BACKBONES, VLMS),
    *per_model("results/patch_activations/{model}/metrics.json", VLMS),
    *per_model("results/train_probes/{model}/metrics.json", VLMS, CONTROLS),
    *per_model("results/measure_resolution/{model}/metrics.json", MODELS),
    *per_model("results/recover_recall/{model}/metrics.json", VLMS),
]
LINEAGES = sorted(
    {
        str(Path(file).with_name(lineage.RECORD))
        for files in [*TABLES.values(), METRICS]
        for file in ([files] if isinstance(files, str) else files)
    }
    | {
        *per_model("results/extract_activations/{model}/lineage.json", MODELS),
        "results/fetch_images/lineage.json",
        "results/plot_figures/lineage.json",
    }
)


rule plot_figures:
    input:
        **TABLES,
    output:
        **FIGURE_FILES,
        summary="results/plot_figures/summary.json",
        headline="results/plot_figures/headline.json",
        lineage="results/plot_figures/lineage.json",
    log:
        "logs/plot_figures.log",
    params:
        call=lineage.arguments,
        slice=slice_of("plot_figures"),
        code=code_of("plot_figures"),
    message:
        "plot_figures"
    shell:
        "twohop plot_figures {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"


rule render_report:
    input:
        **TABLES,
        funnel="results/curate_entities/funnel.parquet",
        pictures="results/fetch_images/pictures.zip",
        manifest="results/fetch_images/manifest.parquet",
        summary="results/plot_figures/summary.json",
        figures=list(FIGURE_FILES.values()),
        lineages=LINEAGES,
    output:
        report="results/render_report/report.html",
        lineage="results/render_report/lineage.json",
    log:
        "logs/render_report.log",
    params:
        call=lineage.arguments,
        slice=slice_of("render_report"),
        code=code_of("render_report"),
    message:
        "render_report"
    shell:
        "twohop render_report {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"
