from sklearn.utils.estimator_checks import parametrize_with_checks

from skjeffreys import JeffreysDensity


@parametrize_with_checks([JeffreysDensity()])
def test_scikit_learn_contract(estimator, check):
    check(estimator)
