# Entities, facts and pictures.
#
# inputs:  packages of the environment (flag art, facts), or the user's tables and every picture of the user's folder
# outputs: results/curate_entities/{entities,facts,picture_sources,funnel}.parquet
#          results/fetch_images/{pictures.zip,manifest.parquet}
# steps:   curate_entities -> fetch_images


rule curate_entities:
    input:
        source_tables=SOURCE_TABLES,
        source_pictures=SOURCE_PICTURES,
    output:
        entities="results/curate_entities/entities.parquet",
        facts="results/curate_entities/facts.parquet",
        picture_sources="results/curate_entities/picture_sources.parquet",
        funnel="results/curate_entities/funnel.parquet",
        lineage="results/curate_entities/lineage.json",
    log:
        "logs/curate_entities.log",
    params:
        call=lineage.arguments,
        slice=slice_of("curate_entities"),
        code=code_of("curate_entities"),
    message:
        "curate_entities: entities and facts"
    shell:
        "twohop curate_entities {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"


rule fetch_images:
    input:
        entities="results/curate_entities/entities.parquet",
        picture_sources="results/curate_entities/picture_sources.parquet",
        source_pictures=SOURCE_PICTURES,
    output:
        pictures="results/fetch_images/pictures.zip",
        manifest="results/fetch_images/manifest.parquet",
        lineage="results/fetch_images/lineage.json",
    log:
        "logs/fetch_images.log",
    retries: 3
    threads: CORES
    params:
        call=lineage.arguments,
        slice=slice_of("fetch_images"),
        code=code_of("fetch_images"),
    message:
        "fetch_images: pictures"
    shell:
        "twohop fetch_images {params.call} --params {params.slice:q} --code {params.code:q} 2> {log}"
