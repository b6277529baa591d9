# At which depth is the entity known?
#
# inputs:  questions, pictures, cards
# outputs: results/extract_activations/{model}/activations.h5
#          .cache/twohop/shards/{model}/{shard}-of-{shards}.json, for the time between the shards and the file
#          results/train_probes/{model}/{curves.parquet,predictions.parquet,probes.safetensors,metrics.json}
# steps:   extract_shard (extract_activations.shards > 1) -> extract_activations -> train_probes
SHARD = ".cache/twohop/shards/{model}/{shard}-of-{shards}.json"
SHARDS = PARAMS.extract_activations.shards
PARTS = (
    {
        "shards": expand(
            SHARD, shard=range(1, SHARDS + 1), shards=SHARDS, allow_missing=True
        )
    }
    if SHARDS > 1
    else {}
)
# With shards, the rule of the file only puts them together, which needs no model and no GPU.
EXTRACTION = "gather_shards" if PARTS else "extract_activations"


rule extract_shard:
    input:
        questions="results/build_questions/{model}/questions.parquet",
        manifest="results/fetch_images/manifest.parquet",
        pictures="results/fetch_images/pictures.zip",
        card="results/prepare_model/{model}/card.json",
    output:
        shard=temp(SHARD),
    log:
        "logs/extract_shard/{model}/{shard}-of-{shards}.log",
    wildcard_constraints:
        shard=r"\d+",
        shards=r"\d+",
    threads: MODEL_THREADS
    resources:
        mem_mb=needs_of("extract_activations", "mem_mb"),
        runtime=needs_of("extract_activations", "runtime"),
        gpu=needs_of("extract_activations", "gpu"),
    params:
        call=lineage.arguments,
        slice=slice_of("extract_activations"),
        code=code_of("extract_activations"),
    message:
        "extract_shard: {wildcards.model}, {wildcards.shard} of {wildcards.shards}"
    shell:
        "twohop extract_activations {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"


rule extract_activations:
    input:
        **PARTS,
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
        mem_mb=needs_of(EXTRACTION, "mem_mb"),
        runtime=needs_of(EXTRACTION, "runtime"),
        gpu=needs_of(EXTRACTION, "gpu"),
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
        predictions="results/train_probes/{model}/predictions.parquet",
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
        mem_mb=needs_of("train_probes", "mem_mb"),
        runtime=needs_of("train_probes", "runtime"),
        gpu=needs_of("train_probes", "gpu"),
    params:
        call=lineage.arguments,
        slice=slice_of("train_probes"),
        code=code_of("train_probes"),
    message:
        "train_probes: {wildcards.model}"
    shell:
        "twohop train_probes {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"
