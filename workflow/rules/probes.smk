# At which depth is the entity known?
#
# inputs:  questions, pictures, cards
# outputs: results/extract_activations/{model}/activations.h5
#          results/train_probes/{model}/{curves.parquet,probes.safetensors,metrics.json}
# steps:   extract_activations -> train_probes


rule extract_activations:
    input:
        questions="results/build_questions/{model}/questions.parquet",
        manifest="results/fetch_images/manifest.parquet",
        pictures="results/fetch_images/pictures.zip",
        card="results/prepare_model/{model}/card.json",
    output:
        activations="results/extract_activations/{model}/activations.h5",
        lineage="results/extract_activations/{model}/lineage.json",
    log:
        "logs/extract_activations/{model}.log",
    threads: MODEL_THREADS
    resources:
        mem_mb=2500,
    params:
        call=lineage.arguments,
        slice=slice_of("extract_activations"),
        code=code_of("extract_activations"),
    message:
        "extract_activations: {wildcards.model}"
    shell:
        "twohop extract_activations {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"


rule train_probes:
    input:
        activations="results/extract_activations/{model}/activations.h5",
    output:
        curves="results/train_probes/{model}/curves.parquet",
        curve="results/train_probes/{model}/curve.csv",
        probes="results/train_probes/{model}/probes.safetensors",
        metrics="results/train_probes/{model}/metrics.json",
        lineage="results/train_probes/{model}/lineage.json",
    log:
        "logs/train_probes/{model}.log",
    wildcard_constraints:
        model=one_of(VLMS, CONTROLS),
    threads: MODEL_THREADS
    resources:
        mem_mb=2000,
    params:
        call=lineage.arguments,
        slice=slice_of("train_probes"),
        code=code_of("train_probes"),
    message:
        "train_probes: {wildcards.model}"
    shell:
        "twohop train_probes {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"
