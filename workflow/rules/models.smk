# Models: a card for each entry of the catalogue, and the projectors.
#
# inputs:  data/models/{model}/projector.safetensors (git; assembled models)
#          the backbone's card, with which a vision-language model's shapes are compared
# outputs: results/prepare_model/{model}/card.json
#          results/train_projector/{model}/projector.safetensors, on request or where the model's entry names this file
# steps:   train_projector -> prepare_model (models whose entry says so; too large for git, DVC versions it)
#          train_projector -> train_projectors (copies to data/models; `snakemake --cores all train_projectors`)
#
# No rule makes what lies in data/models, so that a finished projector is never trained again by itself.


rule prepare_model:
    input:
        projector=projector_of,
        backbone=backbone_card_of,
    output:
        card="results/prepare_model/{model}/card.json",
        lineage="results/prepare_model/{model}/lineage.json",
    log:
        "logs/prepare_model/{model}.log",
    threads: MODEL_THREADS
    resources:
        mem_mb=needs_of("prepare_model", "mem_mb"),
        runtime=needs_of("prepare_model", "runtime"),
        gpu=needs_of("prepare_model", "gpu"),
    params:
        call=lineage.arguments,
        slice=slice_of("prepare_model"),
        code=code_of("prepare_model"),
    message:
        "prepare_model: {wildcards.model}"
    shell:
        "twohop prepare_model {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"


rule train_projector:
    output:
        projector=TRAINED,
        log="results/train_projector/{model}/log.json",
        lineage="results/train_projector/{model}/lineage.json",
    log:
        "logs/train_projector/{model}.log",
    wildcard_constraints:
        model=one_of(ASSEMBLED),
    priority: 1  # takes all cores: if it waited for them to be free it would be the last
    threads: CORES
    resources:
        mem_mb=5000,
        runtime=240,
    params:
        call=lineage.arguments,
        slice=slice_of("train_projector"),
        code=code_of("train_projector"),
    message:
        "train_projector: {wildcards.model}"
    shell:
        "twohop train_projector {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"


rule train_projectors:
    input:
        per_model(TRAINED, IN_GIT),
    log:
        "logs/train_projectors.log",
    message:
        "train_projectors: new projectors go to data/models"
    shell:
        "twohop install_projectors {input} 2> {log}"
