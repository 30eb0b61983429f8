def test_a_run_leaves_a_whole_folder(ddpo, quick):
    result = ddpo("--debug", *quick, "--output", "run")
    print(result.output)
    assert result.exit_code == 0
    import subprocess
    print(subprocess.run(["find", "run"], capture_output=True, text=True).stdout)
    print(open("run/config.toml").read(), open("run/metrics.jsonl").read())
    assert 0
