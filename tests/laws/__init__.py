"""The laws of the design as functions of the code under test, beside mutants that break them.

A law raises AssertionError where it is broken. test_laws.py and its neighbours run the laws on the
package; test_mutants.py runs them on broken copies of it and wants them to fail.
"""
