# Questions, and what each model answers.
#
# inputs:  entities, facts, pictures, cards
# outputs: results/build_questions/{model}/questions.parquet
#          results/run_benchmark/{model}/{answers,recognition}.parquet, metrics.json
# steps:   build_questions -> run_benchmark


rule build_questions:
    input:
        entities="results/curate_entities/entities.parquet",
        facts="results/curate_entities/facts.parquet",
        manifest="results/fetch_images/manifest.parquet",
        card="results/prepare_model/{model}/card.json",
    output:
        questions="results/build_questions/{model}/questions.parquet",
        lineage="results/build_questions/{model}/lineage.json",
    log:
        "logs/build_questions/{model}.log",
    params:
        call=lineage.arguments,
        slice=slice_of("build_questions"),
        code=code_of("build_questions"),
    message:
        "build_questions: {wildcards.model}"
    shell:
        "twohop build_questions {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"


rule run_benchmark:
    input:
        entities="results/curate_entities/entities.parquet",
        questions="results/build_questions/{model}/questions.parquet",
        manifest="results/fetch_images/manifest.parquet",
        pictures="results/fetch_images/pictures.zip",
        card="results/prepare_model/{model}/card.json",
    output:
        answers="results/run_benchmark/{model}/answers.parquet",
        recognition="results/run_benchmark/{model}/recognition.parquet",
        metrics="results/run_benchmark/{model}/metrics.json",
        lineage="results/run_benchmark/{model}/lineage.json",
    log:
        "logs/run_benchmark/{model}.log",
    threads: MODEL_THREADS
    resources:
        mem_mb=needs_of("run_benchmark", "mem_mb"),
        runtime=needs_of("run_benchmark", "runtime"),
        gpu=needs_of("run_benchmark", "gpu"),
    params:
        call=lineage.arguments,
        slice=slice_of("run_benchmark"),
        code=code_of("run_benchmark"),
    message:
        "run_benchmark: {wildcards.model}"
    shell:
        "twohop run_benchmark {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"
