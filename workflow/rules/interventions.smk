# What carries the answer, and what repairs it?
#
# inputs:  questions, pictures, cards, activations, answers
# outputs: results/score_attribution/{model}/{scores,question_scores,validation,spans}.parquet, metrics.json
#          results/patch_activations/{model}/{outcomes.parquet,metrics.json}
#          results/recover_recall/{model}/{recovered.parquet,metrics.json}
# steps:   score_attribution -> patch_activations
#          recover_recall


rule score_attribution:
    input:
        questions="results/build_questions/{model}/questions.parquet",
        manifest="results/fetch_images/manifest.parquet",
        pictures="results/fetch_images/pictures.zip",
        card="results/prepare_model/{model}/card.json",
    output:
        scores="results/score_attribution/{model}/scores.parquet",
        question_scores="results/score_attribution/{model}/question_scores.parquet",
        validation="results/score_attribution/{model}/validation.parquet",
        spans="results/score_attribution/{model}/spans.parquet",
        profile="results/score_attribution/{model}/profile.csv",
        metrics="results/score_attribution/{model}/metrics.json",
        lineage="results/score_attribution/{model}/lineage.json",
    log:
        "logs/score_attribution/{model}.log",
    wildcard_constraints:
        model=one_of(BACKBONES, VLMS),
    threads: MODEL_THREADS
    resources:
        mem_mb=needs_of("score_attribution", "mem_mb"),
        runtime=needs_of("score_attribution", "runtime"),
        gpu=needs_of("score_attribution", "gpu"),
    params:
        call=lineage.arguments,
        slice=slice_of("score_attribution"),
        code=code_of("score_attribution"),
    message:
        "score_attribution: {wildcards.model}"
    shell:
        "twohop score_attribution {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"


rule patch_activations:
    input:
        questions="results/build_questions/{model}/questions.parquet",
        manifest="results/fetch_images/manifest.parquet",
        pictures="results/fetch_images/pictures.zip",
        card="results/prepare_model/{model}/card.json",
        activations="results/extract_activations/{model}/activations.h5",
        answers="results/run_benchmark/{model}/answers.parquet",
        recognition="results/run_benchmark/{model}/recognition.parquet",
        spans="results/score_attribution/{model}/spans.parquet",
        backbone_activations=of_backbone(
            "results/extract_activations/{model}/activations.h5"
        ),
        backbone_answers=of_backbone("results/run_benchmark/{model}/answers.parquet"),
    output:
        outcomes="results/patch_activations/{model}/outcomes.parquet",
        metrics="results/patch_activations/{model}/metrics.json",
        lineage="results/patch_activations/{model}/lineage.json",
    log:
        "logs/patch_activations/{model}.log",
    wildcard_constraints:
        model=one_of(VLMS),
    threads: MODEL_THREADS
    resources:
        mem_mb=needs_of("patch_activations", "mem_mb"),
        runtime=needs_of("patch_activations", "runtime"),
        gpu=needs_of("patch_activations", "gpu"),
    params:
        call=lineage.arguments,
        slice=slice_of("patch_activations"),
        code=code_of("patch_activations"),
    message:
        "patch_activations: {wildcards.model}"
    shell:
        "twohop patch_activations {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"


rule recover_recall:
    input:
        questions="results/build_questions/{model}/questions.parquet",
        entities="results/curate_entities/entities.parquet",
        manifest="results/fetch_images/manifest.parquet",
        pictures="results/fetch_images/pictures.zip",
        card="results/prepare_model/{model}/card.json",
        answers="results/run_benchmark/{model}/answers.parquet",
        backbone_answers=of_backbone("results/run_benchmark/{model}/answers.parquet"),
    output:
        recovered="results/recover_recall/{model}/recovered.parquet",
        metrics="results/recover_recall/{model}/metrics.json",
        lineage="results/recover_recall/{model}/lineage.json",
    log:
        "logs/recover_recall/{model}.log",
    wildcard_constraints:
        model=one_of(VLMS),
    threads: MODEL_THREADS
    resources:
        mem_mb=needs_of("recover_recall", "mem_mb"),
        runtime=needs_of("recover_recall", "runtime"),
        gpu=needs_of("recover_recall", "gpu"),
    params:
        call=lineage.arguments,
        slice=slice_of("recover_recall"),
        code=code_of("recover_recall"),
    message:
        "recover_recall: {wildcards.model}"
    shell:
        "twohop recover_recall {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"
