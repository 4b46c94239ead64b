#!/usr/bin/env nextflow
// Inspect a cohort, train once, predict every section in a task of its own.
//   nextflow run main.nf --sheet /data/cohort.csv --out results -resume
nextflow.enable.dsl = 2

params.sheet = null
params.out = 'results'
params.model = 'kriging'
params.genes = 'variable:1000'
params.at = 'grid:50'
params.options = ''      // more for train, as '--config /data/settings.toml'

// paths in the sheet are relative to the sheet, so it is passed by its place and not linked
def sheet() {
    if (!params.sheet) { error 'name the cohort sheet: --sheet /path/to/cohort.csv' }
    file(params.sheet, checkIfExists: true).toAbsolutePath().toString()
}

process INSPECT {
    publishDir params.out, mode: 'copy'

    input:
    val sheet

    output:
    path 'inspect.json'
    path 'check'

    script:
    """
    deepspace inspect '${sheet}' --out check --json --quiet > inspect.json
    """
}

process TRAIN {
    cpus 4
    memory '16 GB'
    publishDir params.out, mode: 'copy'

    input:
    val sheet
    path inspected

    output:
    path 'model'

    script:
    """
    export OMP_NUM_THREADS=${task.cpus}
    deepspace train '${sheet}' --out model --model ${params.model} --genes '${params.genes}' \\
        ${params.options} --quiet
    """
}

process PREDICT {
    tag "${section}"
    cpus 2
    memory '8 GB'
    errorStrategy { task.attempt <= 2 ? 'retry' : 'ignore' }
    publishDir "${params.out}/predictions", mode: 'copy'

    input:
    val sheet
    path model
    val section

    output:
    path "${section}-*.h5ad"
    path "${section}-*.png"
    path "${section}.json"

    script:
    def name = "${section}-${params.at.replace(':', '')}.h5ad"
    """
    export OMP_NUM_THREADS=${task.cpus}
    deepspace predict '${model}' '${sheet}' --section '${section}' --at '${params.at}' \\
        --out '${name}' --json --quiet > '${section}.json'
    """
}

workflow {
    place = sheet()
    sections = Channel.fromPath(place).splitCsv(header: true).map { row -> row.section }
    INSPECT(place)
    TRAIN(place, INSPECT.out[0])
    PREDICT(place, TRAIN.out.first(), sections)
}
